//! Black-box tests: the server as a process, observed through its sockets, files and command line.
//!
//! All of them are modules of one binary, so that the server is linked once and the tests run in
//! parallel: each starts its own servers, in its own data directory, on free ports.
//! `cargo test --test black_box crash` runs one module, and any other test with that word in its
//! name.

mod support;

/// The server's behaviour on client connections.
mod protocol {
    mod abrupt_disconnects;
    mod connections;
    mod frames;
    mod http;
    mod http_read;
    mod last_write_wins;
    mod messages;
    mod op_order;
    mod specification;
    mod tokens;
    mod version2;
}

/// Every limit: those of the server on its clients, and those of the system on the server.
mod bounds {
    mod connection_limit;
    mod large_states;
    mod memory_budgets;
    mod open_files;
    mod rate_and_size;
    mod system_limits;
}

/// The log and its disk: crashes, damage, failures, and the space that the log occupies.
mod persistence {
    mod compaction;
    mod crash;
    mod damage;
    mod deleted_files;
    mod disk_space;
    mod durability;
    mod faults;
    mod recovery;
}

/// Running the server: its reports, restarts, proxies, and kernels that lack recent features.
mod operation {
    mod logs;
    mod metrics;
    mod old_kernel;
    mod proxies;
    mod refused_submissions;
    mod rolling_restart;
    mod secret_rotation;
    mod tuning;
}

/// The commands, their flags and environment variables.
mod cli {
    mod cli_docs;
    mod command_line;
    mod doctor;
    mod environment;
    mod log_tool;
}
