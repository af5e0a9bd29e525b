-- The tokens whose text both of two vocabularies have, by their ids in each.
WITH items AS (
    SELECT
        vocabulary, trim(text) AS text, is_word_start,
        -- Where only ends of words are marked, the whole word and not the beginning of longer ones.
        first(token_id ORDER BY is_word_start IS NULL AND NOT ends_with(text, ' '), token_id) AS token_id
    FROM store.tokens
    WHERE NOT is_special AND trim(text) <> '' AND vocabulary IN ($a, $b)
    GROUP BY ALL
)
SELECT x.token_id AS a, y.token_id AS b
FROM items AS x
JOIN items AS y USING (text)
WHERE x.vocabulary = $a AND y.vocabulary = $b AND coalesce(x.is_word_start = y.is_word_start, true)
-- Where one vocabulary does not say what starts a word, a text may have two matches: the word is meant.
QUALIFY row_number() OVER (PARTITION BY x.token_id ORDER BY y.is_word_start DESC NULLS LAST) = 1
    AND row_number() OVER (PARTITION BY y.token_id ORDER BY x.is_word_start DESC NULLS LAST) = 1
ORDER BY ALL
