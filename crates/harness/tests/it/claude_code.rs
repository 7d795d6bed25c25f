//! Claude Code: recorded sessions, discovery, command lines, history.
