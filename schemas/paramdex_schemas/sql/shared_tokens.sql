-- The tokens whose text both of two vocabularies have, by their ids in each; and how many texts each vocabulary has. $a
-- and $b stand for their tables of tokens.
WITH items AS (
    SELECT 'a' AS vocabulary, * FROM $a UNION ALL SELECT 'b' AS vocabulary, * FROM $b
),
texts AS (
    SELECT
        vocabulary, trim(text) AS text, is_word_start, bool_and(is_byte) AS is_byte,
        -- Of items that read the same the one that text uses. Added ones are found before all others, byte pieces stand
        -- for what has no other. Where only ends of words are marked it is the whole word, not the beginning of longer
        -- ones; then the one of fewer spaces, and the first.
        first(
            token_id
            ORDER BY is_byte, NOT is_added, is_word_start IS NULL AND NOT ends_with(text, ' '), length(text), token_id
        ) AS token_id
    FROM items
    WHERE NOT is_special AND trim(text) <> ''
    GROUP BY vocabulary, trim(text), is_word_start
)
SELECT
    x.token_id AS token_a, y.token_id AS token_b,
    (SELECT count(*) FROM texts WHERE vocabulary = 'a') AS texts_a,
    (SELECT count(*) FROM texts WHERE vocabulary = 'b') AS texts_b
FROM texts AS x
JOIN texts AS y USING (text, is_byte)  -- a byte is no text: its counterpart is a byte piece too
WHERE x.vocabulary = 'a' AND y.vocabulary = 'b' AND coalesce(x.is_word_start = y.is_word_start, true)
-- Where one vocabulary does not say what starts a word, a text may have two matches: the word is meant.
QUALIFY row_number() OVER (PARTITION BY x.token_id ORDER BY y.is_word_start DESC NULLS LAST) = 1
    AND row_number() OVER (PARTITION BY y.token_id ORDER BY x.is_word_start DESC NULLS LAST) = 1
ORDER BY ALL
