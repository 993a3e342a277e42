-- A journal with many gaps is a long row, and every note writes it anew. Postgres tries to compress what is long, and took
-- over a second for 100,000 ranges, forty times what it takes to store them as they are: some 1.6 MB.
ALTER TABLE usage_journals ALTER COLUMN answered SET STORAGE EXTERNAL;
