//! Adapters held to the laws over recorded sessions, and detection of harnesses.

#[cfg(test)]
mod claude_code;
#[cfg(test)]
mod laws;
#[cfg(test)]
mod opencode;
#[cfg(test)]
mod opencode_parked;
#[cfg(test)]
mod refusals;
#[cfg(test)]
mod registry;
#[cfg(test)]
mod scripted;
