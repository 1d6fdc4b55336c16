//! What is exported, as a collector and a Prometheus get it, from the real binaries; and that nothing but a counter
//! changes when the collector is gone, slow or killed.

mod alerts;
mod audit;
mod collector;
mod prometheus;
mod scene;
mod trace;
