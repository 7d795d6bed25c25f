//! Which harness a folder is for.
