\echo Use "ALTER EXTENSION obanrs UPDATE TO '0.6.0'" to load this file. \quit
