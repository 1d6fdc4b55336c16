//! Hyper-V hosts. Here so far: the script that does the host's work; what drives it follows.

pub mod script;
