-- Histograms without their leading zeros, too. Most rollup rows count a few durations of about the same length, so that
-- nearly all of an array that began at bucket 0 was zeros, and the rows with their log records were three times as long.
--
-- The stored form: an array whose subscripts are bucket + 1, as before, but which begins at the first bucket that has a
-- count and ends at the last; '{}' is empty. It is canonical: equal histograms are equal arrays, so that a recount by
-- hist_count or hist_merge can be compared with what is stored by `=`. Clients drop the lower bound of an array; they
-- ask for hist_counts(histogram), or hist_sum(...) of many, whose first element is always bucket 0.

DROP AGGREGATE hist_count(integer);
DROP AGGREGATE hist_sum(bigint[]);
DROP FUNCTION hist_count_one(bigint[], integer);

-- Element-wise sum; the result reaches as far as both together. What is added mostly has few counts, so these are looked
-- up, in C, instead of looping over all buckets: between two counts there are only zeros, so the next place that a
-- count's value is found at is its own.
CREATE OR REPLACE FUNCTION hist_add(one bigint[], other bigint[]) RETURNS bigint[]
LANGUAGE plpgsql IMMUTABLE STRICT PARALLEL SAFE AS $$
DECLARE
    first integer := array_lower(other, 1);
    last integer := array_upper(other, 1);
    counts bigint[];
    place integer;
    number bigint;
BEGIN
    IF first IS NULL THEN
        RETURN one;
    ELSIF cardinality(one) = 0 THEN
        RETURN other;
    END IF;
    IF first < array_lower(one, 1) THEN
        one := array_fill(0::bigint, ARRAY[array_lower(one, 1) - first], ARRAY[first]) || one;
    END IF;
    IF last > array_upper(one, 1) THEN
        one := one || array_fill(0::bigint, ARRAY[last - array_upper(one, 1)]);
    END IF;
    IF first = last THEN
        one[first] := one[first] + other[first];
        RETURN one;
    END IF;
    counts := array_remove(other, 0);
    IF cardinality(counts) <= 8 THEN
        place := first - 1;
        FOREACH number IN ARRAY counts LOOP
            place := array_position(other, number, place + 1);
            one[place] := one[place] + number;
        END LOOP;
    ELSE
        FOR place IN first .. last LOOP
            IF other[place] <> 0 THEN
                one[place] := one[place] + other[place];
            END IF;
        END LOOP;
    END IF;
    RETURN one;
END
$$;

-- The histogram of a list of buckets; nulls in it are not counted.
CREATE FUNCTION hist_of(buckets integer[]) RETURNS bigint[]
LANGUAGE plpgsql IMMUTABLE STRICT PARALLEL SAFE AS $$
DECLARE
    present integer[] := array_remove(buckets, NULL);
    first integer := present[1];
    last integer := first;
    bucket integer;
    histogram bigint[];
BEGIN
    IF first IS NULL THEN
        RETURN '{}';
    ELSIF cardinality(present) = 1 THEN
        RETURN array_fill(1::bigint, ARRAY[1], ARRAY[first + 1]);
    END IF;
    FOREACH bucket IN ARRAY present LOOP
        IF bucket < first THEN
            first := bucket;
        ELSIF bucket > last THEN
            last := bucket;
        END IF;
    END LOOP;
    histogram := array_fill(0::bigint, ARRAY[last - first + 1], ARRAY[first + 1]);
    FOREACH bucket IN ARRAY present LOOP
        histogram[bucket + 1] := histogram[bucket + 1] + 1;
    END LOOP;
    RETURN histogram;
END
$$;

-- The counts from bucket 0 on, for clients.
CREATE FUNCTION hist_counts(histogram bigint[]) RETURNS bigint[]
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT CASE
        WHEN array_lower(histogram, 1) > 1
            THEN array_fill(0::bigint, ARRAY[array_lower(histogram, 1) - 1]) || histogram
        ELSE histogram
    END
$$;

-- The histogram, in the stored form, of many buckets; null, an absent duration, is not counted. The buckets are gathered
-- in C and counted once.
CREATE AGGREGATE hist_count(integer) (
    SFUNC = array_append, STYPE = integer[], INITCOND = '{}', FINALFUNC = hist_of, COMBINEFUNC = array_cat,
    PARALLEL = SAFE
);

-- The histogram, in the stored form, of many histograms together; null for none. Without an initial value the first one
-- is taken as it is, which is all there is to do for most groups of a batch.
CREATE AGGREGATE hist_merge(bigint[]) (
    SFUNC = hist_add, STYPE = bigint[], COMBINEFUNC = hist_add, PARALLEL = SAFE
);

-- The same for clients, from bucket 0 on.
CREATE AGGREGATE hist_sum(bigint[]) (
    SFUNC = hist_add, STYPE = bigint[], FINALFUNC = hist_counts, COMBINEFUNC = hist_add, PARALLEL = SAFE
);

-- What is stored, in the new form. Trailing zeros there are none of.
CREATE FUNCTION hist_narrowed(histogram bigint[]) RETURNS bigint[]
LANGUAGE plpgsql IMMUTABLE STRICT AS $$
DECLARE
    first integer := 1;
BEGIN
    WHILE histogram[first] = 0 LOOP
        first := first + 1;
    END LOOP;
    IF first = 1 THEN
        RETURN histogram;
    END IF;
    -- A slice begins at 1; put before it, an element with a subscript of its own gives the whole its place.
    RETURN array_fill(histogram[first], ARRAY[1], ARRAY[first]) || histogram[first + 1:];
END
$$;
UPDATE usage_rollup_minute SET latency_histogram = hist_narrowed(latency_histogram),
    first_token_histogram = hist_narrowed(first_token_histogram);
UPDATE usage_rollup_hour SET latency_histogram = hist_narrowed(latency_histogram),
    first_token_histogram = hist_narrowed(first_token_histogram);
UPDATE usage_rollup_day SET latency_histogram = hist_narrowed(latency_histogram),
    first_token_histogram = hist_narrowed(first_token_histogram);
DROP FUNCTION hist_narrowed(bigint[]);
