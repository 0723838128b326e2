//! The engines that this binary serves: one list, in the order in which they are proposed and documented.

use backup_core::engine::EngineDescriptor;

/// Every engine that was compiled in.
pub const ENGINES: &[EngineDescriptor] = &[
    #[cfg(feature = "files")]
    engine_files::FILES,
    #[cfg(feature = "files")]
    engine_files::SQLITE,
    #[cfg(feature = "postgres")]
    engine_postgres::POSTGRES,
    #[cfg(feature = "redis")]
    engine_redis::REDIS,
];
