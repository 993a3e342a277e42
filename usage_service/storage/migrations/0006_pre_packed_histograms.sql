-- Histograms as one number each, instead of arrays. As functions of ours ran for every row that was merged, merging arrays
-- took two fifths of the database's time at ingest and nine tenths of a report's; numbers are added by the server itself.
--
-- The number's digits in base 10^12 are the counts, that of bucket 0 lowest: a histogram with 3 durations in bucket 1 is
-- 3000000000000. So adding two numbers adds the histograms bucket by bucket, sum() merges any number of them, equal
-- histograms are equal numbers, and no count can spill into the next: it would take 10^12 attempts in one bucket. Empty
-- is 0. numeric keeps no zeros at either end, so that a row with few durations is short.
-- usage_service/domain/histogram.py unpacks them; hist_counts does the same for people.

DROP AGGREGATE hist_sum(bigint[]);
DROP AGGREGATE hist_count(integer);
DROP FUNCTION hist_count_one(bigint[], integer);
DROP FUNCTION hist_add(bigint[], bigint[]);

-- The histogram of one duration; null for none. That of many is sum(hist_one(duration_ms)).
CREATE FUNCTION hist_one(duration_ms integer) RETURNS numeric
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT ('1e' || 12 * hist_bucket(duration_ms))::numeric
$$;

-- The histogram of many buckets, by bucket number; null, an absent duration, is not counted.
CREATE FUNCTION hist_count_one(histogram numeric, bucket integer) RETURNS numeric
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT histogram + coalesce(('1e' || 12 * bucket)::numeric, 0)
$$;
CREATE AGGREGATE hist_count(integer) (
    SFUNC = hist_count_one, STYPE = numeric, INITCOND = '0', COMBINEFUNC = numeric_add, PARALLEL = SAFE
);

-- The counts from bucket 0 on; trailing zeros are left out.
CREATE FUNCTION hist_counts(histogram numeric) RETURNS bigint[]
LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE AS $$
    SELECT coalesce(array_agg(substr(digits, length(digits) - 12 * place + 1, 12)::bigint ORDER BY place), '{}')
    FROM (SELECT lpad(number, (length(number) + 11) / 12 * 12, '0') AS digits
          FROM (SELECT histogram::text AS number) AS text) AS padded,
        generate_series(1, length(digits) / 12) AS place
    WHERE histogram > 0
$$;

-- What is stored, in the new form.
CREATE FUNCTION hist_packed(histogram bigint[]) RETURNS numeric
LANGUAGE sql IMMUTABLE AS $$
    SELECT coalesce(sum(number * ('1e' || 12 * (place - 1))::numeric), 0)
    FROM unnest(histogram) WITH ORDINALITY AS counted (number, place)
$$;
ALTER TABLE usage_rollup_minute
    ALTER COLUMN latency_histogram TYPE numeric USING hist_packed(latency_histogram),
    ALTER COLUMN first_token_histogram TYPE numeric USING hist_packed(first_token_histogram);
ALTER TABLE usage_rollup_hour
    ALTER COLUMN latency_histogram TYPE numeric USING hist_packed(latency_histogram),
    ALTER COLUMN first_token_histogram TYPE numeric USING hist_packed(first_token_histogram);
ALTER TABLE usage_rollup_day
    ALTER COLUMN latency_histogram TYPE numeric USING hist_packed(latency_histogram),
    ALTER COLUMN first_token_histogram TYPE numeric USING hist_packed(first_token_histogram);
DROP FUNCTION hist_packed(bigint[]);
