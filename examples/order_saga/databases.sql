-- A database for each service; PostgreSQL's image runs this once.
create database orders;
create database payments;
create database stock;
create database shipping;
