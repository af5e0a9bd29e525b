-- The layers of a displacement that moved most, each with its share of the sum of the squared norms of $kinds.
SELECT stack, layer, sum(norm::DOUBLE ** 2) AS moved, moved / sum(moved) OVER () AS share
FROM parameters
WHERE list_contains($kinds, kind)
GROUP BY stack, layer
HAVING moved > 0
ORDER BY moved DESC, stack, layer
LIMIT $k
