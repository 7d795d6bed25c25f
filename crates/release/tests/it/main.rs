//! Folders picked, packed, unpacked and checked.

#[cfg(test)]
mod archive;
#[cfg(test)]
mod check;
#[cfg(test)]
mod guide;
#[cfg(test)]
mod hostile;
#[cfg(test)]
mod manifest;
#[cfg(test)]
mod others;
#[cfg(test)]
mod picking;
#[cfg(test)]
mod raw;
#[cfg(test)]
mod refusals;
