//! Folders picked, packed, unpacked and checked.

#[cfg(test)]
mod archive;
#[cfg(test)]
mod check;
