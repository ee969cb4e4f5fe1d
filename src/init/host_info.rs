//! host_info
