\echo Use "ALTER EXTENSION obanrs UPDATE TO '0.8.0'" to load this file. \quit
