//! idregs.
