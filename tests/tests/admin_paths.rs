//! Which paths of the admin port are served at all (`Admin.allow_paths`): what Envoy refuses is refused in its words.

use outrigger_tests::config::bootstrap;
use outrigger_tests::{Proxy, Settings, proxy};

#[tokio::test]
async fn paths_that_are_not_listed_are_refused_as_by_envoy() {
    let admin = "admin: { address: { socket_address: { address: 127.0.0.1, port_value: 0 } }, \
                 allow_paths: [{ exact: /ready }, { prefix: '/stats?filter=server' }] }\n";
    let mut told = Vec::new();
    for program in [proxy::program(), proxy::envoy()] {
        let settings = Settings { program, ..Settings::default() };
        let proxy = Proxy::start_with(&(bootstrap(&[], &[]) + admin), settings).await;
        let mut answers = Vec::new();
        for (method, path) in
            [("GET", "/"), ("GET", "/ready"), ("GET", "/ready?x"), ("GET", "/nowhere"), ("POST", "/quitquitquit")]
        {
            let response = proxy.try_admin(method, path).await.unwrap();
            let kind = response.header("content-type").map(str::to_owned);
            answers.push((path, response.status, kind, response.text()));
        }
        assert_eq!(proxy.admin("/stats?filter=server.live").await.text(), "server.live: 1\n");
        told.push(answers);
    }
    assert_eq!(told[0], told[1]);
    let statuses: Vec<u16> = told[0].iter().map(|(_, status, ..)| *status).collect();
    assert_eq!(statuses, [403, 200, 403, 403, 403]);
}
