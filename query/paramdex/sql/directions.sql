-- The first $k directions of one head, both matrices or one, each with the ids of its tokens by role and side.
WITH lists AS (
    SELECT
        matrix, direction, (CASE WHEN is_source THEN 'source' ELSE 'target' END) || '_'
            || (CASE WHEN is_top THEN 'top' ELSE 'bottom' END) AS name,
        list(token_id ORDER BY rank) AS ids
    FROM store.direction_tokens
    WHERE head_id = $head_id AND direction <= $k
    GROUP BY ALL
)
SELECT d.matrix, d.direction, d.singular_value, d.share, map_from_entries(list((l.name, l.ids))) AS tokens
FROM store.directions AS d
JOIN lists AS l USING (matrix, direction)
WHERE d.head_id = $head_id AND ($matrix IS NULL OR d.matrix = $matrix)
GROUP BY ALL
ORDER BY d.matrix, d.direction
