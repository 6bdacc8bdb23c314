//! Markdown reference of the API, generated from the schema.
