//! The agent shell: session, ledger, reconcile loop and host drivers around the brain in `core/`.

pub mod driver;
