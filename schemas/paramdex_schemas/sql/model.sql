-- The physical tables of one model: narrow, numbered, in the order that makes look-ups fast. Readers use the views of
-- views.sql. Parameters and heads are numbered from 0.

CREATE SCHEMA store;

-- One row: the model. Its name stands here alone, and addresses are put together from it.
CREATE TABLE store.models (
    model VARCHAR NOT NULL,
    source VARCHAR NOT NULL,
    revision VARCHAR,
    base VARCHAR,
    family VARCHAR NOT NULL,
    family_inferred BOOLEAN NOT NULL,
    model_type VARCHAR NOT NULL,
    n_layers INTEGER NOT NULL,
    d_model INTEGER NOT NULL,
    n_heads INTEGER NOT NULL,
    n_kv_heads INTEGER NOT NULL,
    d_head INTEGER NOT NULL,
    d_ff INTEGER,
    n_experts INTEGER,
    d_expert INTEGER,
    gated BOOLEAN NOT NULL,
    stacks VARCHAR[],
    vocabulary VARCHAR NOT NULL,
    vocabulary_size INTEGER NOT NULL,
    embedding VARCHAR NOT NULL,
    tied BOOLEAN NOT NULL,
    fold_norm BOOLEAN NOT NULL,
    reading VARCHAR NOT NULL,
    reading_text VARCHAR,
    reading_tokens INTEGER,
    embedding_rank INTEGER NOT NULL,
    embedding_condition DOUBLE NOT NULL,
    rotary_left_out BOOLEAN NOT NULL,
    dtype VARCHAR NOT NULL,
    top_k INTEGER NOT NULL,
    pair_k INTEGER NOT NULL,
    neighbor_k INTEGER NOT NULL,
    directions_k INTEGER NOT NULL,
    n_parameters BIGINT NOT NULL,
    weights_sha256 VARCHAR NOT NULL,
    base_sha256 VARCHAR,
    tokenizer_sha256 VARCHAR NOT NULL,
    plan_sha256 VARCHAR NOT NULL,
    built_at TIMESTAMP NOT NULL,
    builder_version VARCHAR NOT NULL
);

-- One row per run of parameters: all that a layer has of one kind under owners of one sort, numbered from first_param_id.
CREATE TABLE store.layout (
    kind VARCHAR NOT NULL,
    stack VARCHAR,
    layer SMALLINT,
    owner VARCHAR,
    n_owners INTEGER NOT NULL,
    size INTEGER NOT NULL,
    group_size INTEGER NOT NULL,
    first_param_id BIGINT NOT NULL,
    space VARCHAR NOT NULL
);

-- One row per item of the model's vocabulary, by token_id; `folded` is what a typed word is compared with. `is_byte`
-- pieces stand for what has no piece of its own (byte fallback), `is_added` ones are found in text before all others; ids
-- of no token count as special.
CREATE TABLE store.tokens (
    token_id INTEGER NOT NULL,
    token VARCHAR NOT NULL,
    text VARCHAR NOT NULL,
    folded VARCHAR NOT NULL,
    is_special BOOLEAN NOT NULL,
    is_byte BOOLEAN NOT NULL,
    is_added BOOLEAN NOT NULL,
    is_ascii BOOLEAN NOT NULL,
    is_alnum BOOLEAN NOT NULL,
    is_word_start BOOLEAN
);

-- One row per item of the vocabulary, by token_id: what the row of the model's embedding says of it, and in how many lists
-- of the model's parameters it is among the ten strongest, by score and by token_z, both sides.
CREATE TABLE store.token_embeddings (
    token_id INTEGER NOT NULL,
    norm FLOAT NOT NULL,
    undertrained FLOAT,
    is_undertrained BOOLEAN NOT NULL,
    in_top_10 INTEGER NOT NULL DEFAULT 0,
    in_top_10_token_z INTEGER NOT NULL DEFAULT 0
);

-- One row per parameter, by param_id; `path` is its address without the model's name. The lists hold its strongest
-- tokens, for look-ups by parameter. In order of (score, token_id), strongest first, they begin with models.top_k tokens by score; the rest is among as many by token_z, which
-- is NULL where the kind has too few vectors in its space to say what is usual for a token.
CREATE TABLE store.parameters (
    param_id BIGINT NOT NULL,
    path VARCHAR NOT NULL,
    stack VARCHAR,
    layer SMALLINT,
    kind VARCHAR NOT NULL,
    head SMALLINT,
    kv_head SMALLINT,
    expert SMALLINT,
    idx INTEGER NOT NULL,
    space VARCHAR NOT NULL,
    norm FLOAT NOT NULL,
    mean FLOAT NOT NULL,
    std FLOAT NOT NULL,
    projected_norm FLOAT NOT NULL,
    embedding_std FLOAT NOT NULL,
    reads FLOAT,
    top_readable FLOAT,
    bottom_readable FLOAT,
    top_tokens INTEGER[] NOT NULL,
    top_scores FLOAT[] NOT NULL,
    top_token_z FLOAT[],
    bottom_tokens INTEGER[] NOT NULL,
    bottom_scores FLOAT[] NOT NULL,
    bottom_token_z FLOAT[]
);

CREATE UNIQUE INDEX parameters_by_id ON store.parameters (param_id);

-- One row per parameter, side and token of its lists, in the order (token_id, side, score), for look-ups
-- by token. ``rank`` is by score and ``rank_token_z`` by token_z; NULL where the token is not in that list.
CREATE TABLE store.postings (
    token_id INTEGER NOT NULL,
    is_top BOOLEAN NOT NULL,
    score FLOAT NOT NULL,
    token_z FLOAT,
    rank SMALLINT,
    rank_token_z SMALLINT,
    param_id BIGINT NOT NULL
);

-- One row per head.
CREATE TABLE store.heads (
    head_id BIGINT NOT NULL,
    path VARCHAR NOT NULL,
    stack VARCHAR,
    layer SMALLINT NOT NULL,
    head SMALLINT NOT NULL,
    kv_head SMALLINT NOT NULL,
    space VARCHAR NOT NULL,
    qk_norm FLOAT NOT NULL,
    vo_norm FLOAT NOT NULL,
    qk_mean FLOAT NOT NULL,
    qk_std FLOAT NOT NULL,
    vo_mean FLOAT NOT NULL,
    vo_std FLOAT NOT NULL
);

-- One row per head's token pair, by head_id, matrix and side: of the strongest by score, of all and of different words,
-- and by token_z, which is NULL where the model has too few heads; a rank is NULL where the pair is not in that list.
CREATE TABLE store.pairs (
    head_id BIGINT NOT NULL,
    matrix VARCHAR NOT NULL,
    is_top BOOLEAN NOT NULL,
    rank SMALLINT,
    rank_distinct SMALLINT,
    same_word BOOLEAN NOT NULL,
    source_id INTEGER NOT NULL,
    target_id INTEGER NOT NULL,
    score FLOAT NOT NULL,
    token_z FLOAT,
    rank_token_z SMALLINT,
    rank_distinct_token_z SMALLINT
);

-- One row per singular direction of a head's matrix, by head_id, matrix and direction (1 has the largest value).
CREATE TABLE store.directions (
    head_id BIGINT NOT NULL,
    matrix VARCHAR NOT NULL,
    direction SMALLINT NOT NULL,
    singular_value FLOAT NOT NULL,
    share FLOAT NOT NULL
);

-- One row per token of a direction, what is read (is_source) or written, by direction, role and side.
CREATE TABLE store.direction_tokens (
    head_id BIGINT NOT NULL,
    matrix VARCHAR NOT NULL,
    direction SMALLINT NOT NULL,
    is_source BOOLEAN NOT NULL,
    is_top BOOLEAN NOT NULL,
    rank SMALLINT NOT NULL,
    token_id INTEGER NOT NULL,
    score FLOAT NOT NULL
);
