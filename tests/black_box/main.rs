//! Black-box tests: the server as a process, seen through its sockets, files and command line.
//!
//! All of them are modules of one binary, so that the server is linked once and the tests run side
//! by side: each starts its own servers, in its own data directory, on ports that were free.
//! `cargo test --test black_box crash` runs one module, or whatever else has the word in its name.

mod support;

/// What a client sees on its connection.
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
}

/// Every limit: of the server on its clients, and of the system on the server.
mod bounds {
    mod connection_limit;
    mod large_states;
    mod memory_budgets;
    mod open_files;
    mod rate_and_size;
    mod system_limits;
}

/// The log and its disk: crashes, damage, failures, and the space that the log takes.
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

/// Running the server: what it reports, restarts, proxies, and kernels that do less than today's.
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
