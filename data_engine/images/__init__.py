"""Images in: a URI becomes a list of shards, a shard a stream of encoded images, an encoded image RGB pixels."""
