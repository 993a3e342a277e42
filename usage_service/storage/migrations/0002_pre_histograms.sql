-- Durations as histograms on a fixed base-2 scale, 8 buckets to a doubling, 160 in all: usage_service/domain/histogram.py
-- defines them, these compute the same. Element 1 is bucket 0; trailing zeros are left out; '{}' is empty.

-- The bucket, 0 to 159, of a duration in whole milliseconds. The bounds are the smallest integers in each bucket from
-- the second on, so that no logarithm, whose last digit could differ, decides.
CREATE FUNCTION hist_bucket(duration_ms integer) RETURNS integer
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT width_bucket(duration_ms, ARRAY[
        2, 2, 2, 2, 2, 2, 2, 2, 3, 3, 3, 3, 4, 4, 4, 4, 5, 5, 6, 6, 7, 7, 8, 8, 9, 10, 11, 12, 13, 14, 15, 16, 18, 20,
        21, 23, 25, 27, 30, 32, 35, 39, 42, 46, 50, 54, 59, 64, 70, 77, 83, 91, 99, 108, 118, 128, 140, 153, 166, 182,
        198, 216, 235, 256, 280, 305, 332, 363, 395, 431, 470, 512, 559, 609, 664, 725, 790, 862, 940, 1024, 1117,
        1218, 1328, 1449, 1580, 1723, 1879, 2048, 2234, 2436, 2656, 2897, 3159, 3445, 3757, 4096, 4467, 4871, 5312,
        5793, 6317, 6889, 7513, 8192, 8934, 9742, 10624, 11586, 12634, 13778, 15025, 16384, 17867, 19484, 21248,
        23171, 25268, 27555, 30049, 32768, 35734, 38968, 42495, 46341, 50536, 55109, 60097, 65536, 71468, 77936,
        84990, 92682, 101071, 110218, 120194, 131072, 142936, 155872, 169980, 185364, 202141, 220436, 240388, 262144,
        285871, 311744, 339959, 370728, 404282, 440872, 480775, 524288, 571741, 623488, 679918, 741456, 808563,
        881744, 961549
    ])
$$;

-- Element-wise sum. What is added is mostly one batch's share and has few counts, so these are looked up, in C, instead
-- of looping over all buckets: between two counts there are only zeros, so the next place that a count's value is found
-- at is its own. The first argument may be shorter.
CREATE FUNCTION hist_add(one bigint[], other bigint[]) RETURNS bigint[]
LANGUAGE plpgsql IMMUTABLE STRICT PARALLEL SAFE AS $$
DECLARE
    counts bigint[] := array_remove(other, 0);
    bucket integer := 0;
    number bigint;
BEGIN
    IF cardinality(one) < cardinality(other) THEN
        one := one || array_fill(0::bigint, ARRAY[cardinality(other) - cardinality(one)]);
    END IF;
    IF cardinality(counts) <= 8 THEN
        FOREACH number IN ARRAY counts LOOP
            bucket := array_position(other, number, bucket + 1);
            one[bucket] := one[bucket] + number;
        END LOOP;
    ELSE
        FOR bucket IN 1 .. cardinality(other) LOOP
            IF other[bucket] <> 0 THEN
                one[bucket] := one[bucket] + other[bucket];
            END IF;
        END LOOP;
    END IF;
    RETURN one;
END
$$;

CREATE FUNCTION hist_count_one(histogram bigint[], bucket integer) RETURNS bigint[]
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE AS $$
BEGIN
    IF bucket IS NULL THEN
        RETURN histogram;
    END IF;
    IF bucket >= cardinality(histogram) THEN
        histogram := histogram || array_fill(0::bigint, ARRAY[bucket + 1 - cardinality(histogram)]);
    END IF;
    histogram[bucket + 1] := histogram[bucket + 1] + 1;
    RETURN histogram;
END
$$;

-- The histogram of many buckets; null, an absent duration, is not counted.
CREATE AGGREGATE hist_count(integer) (
    SFUNC = hist_count_one, STYPE = bigint[], INITCOND = '{}', COMBINEFUNC = hist_add, PARALLEL = SAFE
);

-- The histogram of many histograms together; null for none. Without an initial value the first one is taken as it is,
-- which is all there is to do for most groups of a batch.
CREATE AGGREGATE hist_sum(bigint[]) (
    SFUNC = hist_add, STYPE = bigint[], COMBINEFUNC = hist_add, PARALLEL = SAFE
);
