//! guest_tree.
