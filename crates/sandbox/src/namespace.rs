//! The driver `namespace`: each session in namespaces of its own, with a root of its own, on the host's kernel.

pub(crate) mod root;
