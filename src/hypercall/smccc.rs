//! smccc
