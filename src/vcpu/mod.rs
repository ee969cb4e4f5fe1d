//! The vCPU: its context, EL1 state, exit decoding, injection and the world switch.
