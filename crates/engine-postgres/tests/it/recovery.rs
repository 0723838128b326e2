//! Recovery to a moment on real servers under load: what came before is there, row by row, and what came after is not.

mod apart;
mod drill;
mod hand_over;
mod kinds;
mod links;
mod places;
mod refused;
mod support;
mod tablespaces;
mod targets;
mod timelines;
