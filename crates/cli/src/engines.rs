//! The engines that this binary serves: one list, in the order in which they are proposed and documented.

use backup_core::engine::EngineDescriptor;

/// Every engine that was compiled in.
pub const ENGINES: &[EngineDescriptor] = &[];
