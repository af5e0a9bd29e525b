-- The parameters of one kind of a displacement that moved most.
SELECT param_id AS row, address, norm
FROM parameters
WHERE kind = $kind AND ($layer IS NULL OR layer = $layer) AND norm > 0
ORDER BY norm DESC, row
LIMIT $k
