//! Checks of connections: file descriptors, the port, its accept queue, and the ports of outgoing
//! connections.

use crate::command::doctor::facts::{Directory, Network, Port, ProcessLimits, WantedServer};
use crate::command::doctor::finding::Finding;
use crate::command::text;
use crate::io::server::connections_allowed;
use crate::limits::LISTEN_BACKLOG;

/// The number of connections that a server without --max-connections should have room for.
const CONNECTIONS_ADVISED: usize = 10_000;

pub fn open_files(limits: &ProcessLimits, wanted: &WantedServer) -> Finding {
    const CHECK: &str = "open files";
    const RAISE: &str = "raise the limit (ulimit -Hn): LimitNOFILE in tuning/etherply.service, \
                         tuning/limits.conf, or --ulimit nofile= for a container";
    let allowed = match connections_allowed(limits.open_files.unwrap_or(u64::MAX), wanted.shards) {
        Ok(allowed) => allowed,
        Err(error) => return Finding::fail(CHECK, error.to_string(), RAISE),
    };
    let Some(limit) = limits.open_files else {
        return Finding::ok(CHECK, "no limit");
    };
    let found = format!(
        "the limit is {}, enough for {} connections",
        text::thousands(limit),
        text::thousands(allowed as u64)
    );
    match wanted.connections {
        Some(connections) if connections > allowed => Finding::warn(
            CHECK,
            format!(
                "{found}, but --max-connections is {}",
                text::thousands(connections as u64)
            ),
            RAISE,
        ),
        None if allowed < CONNECTIONS_ADVISED => Finding::warn(CHECK, found, RAISE),
        _ => Finding::ok(CHECK, found),
    }
}

pub fn port(network: &Network, directory: &Directory, wanted: &WantedServer) -> Finding {
    const CHECK: &str = "port";
    let address = wanted.address;
    match (&network.port, &directory.server) {
        (Port::Free, _) if address.port() == 0 => Finding::ok(CHECK, "the server picks a free one"),
        (Port::Free, _) => Finding::ok(CHECK, format!("{address} is free")),
        (Port::Taken, Some(pid)) => Finding::warn(
            CHECK,
            format!(
                "{address} is in use, by the server on this data directory (pid {pid}) or by \
                 another process"
            ),
            format!(
                "ss -ltnp 'sport = :{}' shows which; if it is that server, all is well",
                address.port()
            ),
        ),
        (Port::Taken, None) => Finding::fail(
            CHECK,
            format!("{address} is in use by another process"),
            format!(
                "ss -ltnp 'sport = :{}' shows which: stop it, or choose another port with --port",
                address.port()
            ),
        ),
        (Port::Refused(error), _) => Finding::fail(
            CHECK,
            error.clone(),
            "choose an address of this host with --host; a port below 1024 needs \
             AmbientCapabilities=CAP_NET_BIND_SERVICE (tuning/etherply.service)",
        ),
    }
}

pub fn backlog(network: &Network) -> Option<Finding> {
    const CHECK: &str = "accept queue";
    let somaxconn = network.somaxconn?;
    let wanted = u64::from(LISTEN_BACKLOG.unsigned_abs());
    Some(if somaxconn < wanted {
        Finding::warn(
            CHECK,
            format!(
                "net.core.somaxconn is {somaxconn}, but the server asks for {wanted}: when all \
                 clients reconnect at once, some wait for a second or more"
            ),
            format!(
                "sudo sysctl -w net.core.somaxconn={wanted}; to make it permanent, see \
                 tuning/sysctl.conf"
            ),
        )
    } else {
        Finding::ok(
            CHECK,
            format!("net.core.somaxconn is {somaxconn}; the server asks for {wanted}"),
        )
    })
}

pub fn send_queue(network: &Network) -> Option<Finding> {
    let (unsent, most) = (network.unsent_bytes_max?, network.send_bytes_max?);
    let found = if unsent < most {
        format!("at most {} unsent per client", text::bytes(unsent))
    } else {
        // This is not a warning, because how much is too much depends on the clients.
        format!(
            "a stalled client holds up to {} of kernel memory; to bound it, set \
             net.ipv4.tcp_notsent_lowat (see tuning/sysctl.conf)",
            text::bytes(most)
        )
    };
    Some(Finding::ok("send queue", found))
}

pub fn local_ports(network: &Network, wanted: &WantedServer) -> Option<Finding> {
    const CHECK: &str = "local ports";
    let (first, last) = network.local_ports?;
    let is_in = |range: &(u16, u16)| (range.0..=range.1).contains(&wanted.address.port());
    let is_reserved = network.reserved_ports.iter().any(is_in);
    let port = wanted.address.port();
    if is_in(&(first, last)) && !is_reserved {
        return Some(Finding::warn(
            CHECK,
            format!(
                "port {port} is in the ephemeral range ({first} to {last}): an outgoing connection \
                 may be using it when the server starts"
            ),
            format!(
                "sudo sysctl -w net.ipv4.ip_local_reserved_ports={port} (a list; keep its other \
                 entries); see tuning/sysctl.conf"
            ),
        ));
    }
    let count = u64::from(last.saturating_sub(first)) + 1;
    Some(Finding::ok(
        CHECK,
        format!(
            "{first} to {last}: a proxy on this host can hold {} connections to the server",
            text::thousands(count)
        ),
    ))
}
