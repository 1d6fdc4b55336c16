//! Request and world to a choice, or to the reasons why not.
