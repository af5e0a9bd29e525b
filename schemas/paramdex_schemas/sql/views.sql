-- The public tables, of one model. Names and columns here are an interface: columns may be added, never renamed or
-- dropped. Over all models of an atlas the same are views of these (everything.sql).

-- The model.
CREATE VIEW models AS
SELECT
    model, source, revision, base, family, family_inferred, model_type, n_layers, d_model, n_heads, n_kv_heads, d_head, d_ff,
    n_experts, d_expert, gated, stacks,
    vocabulary, vocabulary_size, embedding, tied, fold_norm, reading, reading_text, reading_tokens, embedding_rank, embedding_condition, rotary_left_out, dtype,
    top_k, pair_k, neighbor_k, directions_k, n_parameters, weights_sha256, base_sha256, tokenizer_sha256, built_at, builder_version
FROM store.models;

-- What each model has: all that a layer has of one kind, in the order of param_id. ``owner`` is what the vectors belong
-- to within the layer (head, kv_head, expert, or the layer itself where NULL), ``size`` how many each of them has.
CREATE VIEW layout AS
SELECT
    m.model, l.kind, l.stack, l.layer, l.owner, l.n_owners, l.size, l.n_owners * l.size AS n_parameters, l.first_param_id,
    l.space
FROM store.layout AS l
CROSS JOIN store.models AS m;

-- The vocabularies of the models. An item is under-trained where it is so in every model of the vocabulary. Byte pieces
-- (is_byte) stand for what has no piece of its own; ids that no token has count as special.
CREATE VIEW tokens AS
SELECT
    m.vocabulary, t.token_id, t.token, t.text, t.is_special, t.is_byte, t.is_added, t.is_ascii, t.is_alnum, t.is_word_start,
    e.is_undertrained
FROM store.tokens AS t
JOIN store.token_embeddings AS e USING (token_id)
CROSS JOIN store.models AS m;

-- The rows of the models' embeddings. ``undertrained`` is the cosine, from -1 to 1, with the direction in which rows
-- point that the training text hardly used, NULL where the model has none such; from 0.7 on the item is under-trained.
-- ``in_top_10`` tells how much of a hub an item is: among the ten strongest of how many lists of parameters it is, both
-- sides, by score; ``in_top_10_token_z`` by token_z.
CREATE VIEW token_embeddings AS
SELECT m.model, m.vocabulary, e.token_id, t.token, t.text, e.norm, e.undertrained, e.is_undertrained, e.in_top_10,
    e.in_top_10_token_z
FROM store.token_embeddings AS e
CROSS JOIN store.models AS m
JOIN store.tokens AS t USING (token_id);

-- Every vector that reads from or writes to the residual stream. ``space`` is what its scores belong to: the output or
-- the input embedding, or, for what reads, the state that enters layer 0 for each token (``entering``, in layer 0) or
-- leaves it (``reading``, in layers 1 and up). ``mean``, ``std`` and ``projected_norm`` are of the scores there, ``embedding_std`` is of those by the model's own embedding.
-- ``reads`` is the correlation, over text that the fit never saw, of what the vector reads with its score of the token.
-- ``top_readable`` and ``bottom_readable`` are how much more alike the 20 strongest tokens by token_z are, to the model's
-- own layer 0, than those of vectors by chance, in standard deviations of theirs; ``readable`` is the larger of them.
CREATE VIEW parameters AS
SELECT
    p.param_id, m.model || '/' || p.path AS address, m.model, p.stack, p.layer, p.kind, p.head, p.kv_head, p.expert, p.idx,
    p.norm, p.mean, p.std, p.projected_norm, p.space, p.embedding_std, p.reads,
    greatest(p.top_readable, p.bottom_readable) AS readable, p.top_readable, p.bottom_readable
FROM store.parameters AS p
CROSS JOIN store.models AS m;

-- How well what a layer reads is read: the mean ``reads`` of its ``n`` vectors of a kind that have one.
CREATE VIEW readings AS
SELECT m.model, p.stack, p.layer, p.kind, count(*) AS n, avg(p.reads) AS reads
FROM store.parameters AS p
CROSS JOIN store.models AS m
WHERE p.reads IS NOT NULL
GROUP BY ALL;

-- The strongest tokens of every parameter, both sides. ``token_z`` is how many standard deviations the score lies from
-- the mean of the token's scores over all vectors of the kind that its space scores. ``rank`` is by score and
-- ``rank_token_z`` by that, NULL where the token is not among the strongest so.
CREATE VIEW parameter_tokens AS
SELECT
    t.param_id, m.model || '/' || p.path AS address, m.model, p.stack, p.layer, p.kind, p.head, p.expert, p.idx,
    CASE WHEN t.is_top THEN 'top' ELSE 'bottom' END AS side,
    t.rank, t.token_id, v.token, v.text, t.score, t.token_z, t.rank_token_z
FROM store.postings AS t
JOIN store.parameters AS p USING (param_id)
CROSS JOIN store.models AS m
JOIN store.tokens AS v USING (token_id);

-- The heads, with the sizes of their two matrices. ``space`` is that of queries, keys and values; what is written is
-- scored by the model's own embedding.
CREATE VIEW heads AS
SELECT
    h.head_id, m.model || '/' || h.path AS address, m.model, h.stack, h.layer, h.head, h.kv_head,
    h.qk_norm, h.vo_norm, h.qk_mean, h.qk_std, h.vo_mean, h.vo_std, h.space
FROM store.heads AS h
CROSS JOIN store.models AS m;

-- The strongest token pairs of every head's two matrices, both sides. ``token_z`` is the score, less the mean over all
-- targets of the source, beside what is usual: in root mean squares of the head's, and of the source's and the target's
-- over all heads of the model. ``rank`` and
-- ``rank_distinct`` are by score, the others by that; NULL where the pair is not among the strongest so.
CREATE VIEW head_pairs AS
SELECT
    r.head_id, m.model || '/' || h.path AS address, m.model, h.stack, h.layer, h.head, r.matrix,
    CASE WHEN r.is_top THEN 'top' ELSE 'bottom' END AS side,
    r.rank, r.rank_distinct, r.same_word,
    r.source_id, s.text AS source, r.target_id, g.text AS target, r.score,
    r.token_z, r.rank_token_z, r.rank_distinct_token_z
FROM store.pairs AS r
JOIN store.heads AS h USING (head_id)
CROSS JOIN store.models AS m
JOIN store.tokens AS s ON s.token_id = r.source_id
JOIN store.tokens AS g ON g.token_id = r.target_id;

-- The strongest singular directions of every head's two matrices, centred over tokens on both sides: direction 1 has the
-- largest singular value, ``share`` is its part of the squared Frobenius norm of the V x V matrix.
CREATE VIEW head_directions AS
SELECT
    d.head_id, m.model || '/' || h.path AS address, m.model, h.stack, h.layer, h.head, d.matrix, d.direction, d.singular_value, d.share
FROM store.directions AS d
JOIN store.heads AS h USING (head_id)
CROSS JOIN store.models AS m;

-- What the directions read (source; of QK the query) and write (target; of QK the key): the strongest tokens of either
-- singular vector, both sides. ``score`` is the entry in standard deviations of all V. A top source goes with the top
-- targets, a bottom source with the bottom ones; the largest entry of the source in size is on top.
CREATE VIEW head_direction_tokens AS
SELECT
    d.head_id, m.model || '/' || h.path AS address, m.model, h.stack, h.layer, h.head, d.matrix, d.direction,
    CASE WHEN d.is_source THEN 'source' ELSE 'target' END AS role,
    CASE WHEN d.is_top THEN 'top' ELSE 'bottom' END AS side,
    d.rank, d.token_id, t.token, t.text, d.score
FROM store.direction_tokens AS d
JOIN store.heads AS h USING (head_id)
CROSS JOIN store.models AS m
JOIN store.tokens AS t USING (token_id);
