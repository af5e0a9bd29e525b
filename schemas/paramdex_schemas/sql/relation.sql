-- The physical tables of two related models, a and b: a is the one that was in the atlas first. Parameters are numbered
-- within their models.

CREATE SCHEMA store;

-- One row per neighbor of a parameter: of one of a (`of_a`) among those of b, or the other way.
CREATE TABLE store.neighbors (
    of_a BOOLEAN NOT NULL,
    param_id BIGINT NOT NULL,
    neighbor_id BIGINT NOT NULL,
    rank SMALLINT NOT NULL,
    similarity FLOAT NOT NULL
);

-- One row per pair of layers; feature_score is the same measure on the raw weights, where widths agree.
CREATE TABLE store.layer_alignments (
    kind VARCHAR NOT NULL,
    stack_a VARCHAR,
    layer_a SMALLINT NOT NULL,
    stack_b VARCHAR,
    layer_b SMALLINT NOT NULL,
    score FLOAT NOT NULL,
    matched BOOLEAN NOT NULL,
    feature_score FLOAT,
    feature_matched BOOLEAN
);
