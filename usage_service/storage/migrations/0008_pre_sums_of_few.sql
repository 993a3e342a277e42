-- What the rollups cost at ingest. A batch makes hundreds of groups of one to three rows, 25 sums each. sum() is made for
-- long columns: it sets up an accumulator per group, wide enough for all digits, and turns it into a number at the end,
-- which took a third of the whole statement's time. Plain additions are exact as well and have neither start nor end.
-- Reports sum many rows, and keep sum().
CREATE AGGREGATE sum_of_few(bigint) (SFUNC = int8pl, STYPE = bigint, COMBINEFUNC = int8pl, PARALLEL = SAFE);
CREATE AGGREGATE sum_of_few(numeric) (SFUNC = numeric_add, STYPE = numeric, COMBINEFUNC = numeric_add, PARALLEL = SAFE);

-- The histogram of one duration; null for none. Its powers of 10^12 are looked up, not made of text for each row.
CREATE OR REPLACE FUNCTION hist_one(duration_ms integer) RETURNS numeric
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT (ARRAY[
        1e0, 1e12, 1e24, 1e36, 1e48, 1e60, 1e72, 1e84, 1e96, 1e108, 1e120, 1e132, 1e144, 1e156, 1e168, 1e180, 1e192,
        1e204, 1e216, 1e228, 1e240, 1e252, 1e264, 1e276, 1e288, 1e300, 1e312, 1e324, 1e336, 1e348, 1e360, 1e372,
        1e384, 1e396, 1e408, 1e420, 1e432, 1e444, 1e456, 1e468, 1e480, 1e492, 1e504, 1e516, 1e528, 1e540, 1e552,
        1e564, 1e576, 1e588, 1e600, 1e612, 1e624, 1e636, 1e648, 1e660, 1e672, 1e684, 1e696, 1e708, 1e720, 1e732,
        1e744, 1e756, 1e768, 1e780, 1e792, 1e804, 1e816, 1e828, 1e840, 1e852, 1e864, 1e876, 1e888, 1e900, 1e912,
        1e924, 1e936, 1e948, 1e960, 1e972, 1e984, 1e996, 1e1008, 1e1020, 1e1032, 1e1044, 1e1056, 1e1068, 1e1080,
        1e1092, 1e1104, 1e1116, 1e1128, 1e1140, 1e1152, 1e1164, 1e1176, 1e1188, 1e1200, 1e1212, 1e1224, 1e1236,
        1e1248, 1e1260, 1e1272, 1e1284, 1e1296, 1e1308, 1e1320, 1e1332, 1e1344, 1e1356, 1e1368, 1e1380, 1e1392,
        1e1404, 1e1416, 1e1428, 1e1440, 1e1452, 1e1464, 1e1476, 1e1488, 1e1500, 1e1512, 1e1524, 1e1536, 1e1548,
        1e1560, 1e1572, 1e1584, 1e1596, 1e1608, 1e1620, 1e1632, 1e1644, 1e1656, 1e1668, 1e1680, 1e1692, 1e1704,
        1e1716, 1e1728, 1e1740, 1e1752, 1e1764, 1e1776, 1e1788, 1e1800, 1e1812, 1e1824, 1e1836, 1e1848, 1e1860,
        1e1872, 1e1884, 1e1896, 1e1908
    ]::numeric[])[1 + hist_bucket(duration_ms)]
$$;
