\echo Use "ALTER EXTENSION obanrs UPDATE TO '0.5.0'" to load this file. \quit
