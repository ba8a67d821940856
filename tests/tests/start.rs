//! Starting, stopping, and the simplest life of a record.

use postanalytics_tests::{RawConnection, Server};

#[test]
fn a_batch_is_stored_acknowledged_and_read_back() {
    let server = Server::new();
    let mut connection = RawConnection::open(server.ingest, 1, 7);
    connection.send_batch(1, 3);
    connection.expect_ack(1);
    assert_eq!(server.total("records_stored"), 3);
    server.assert_laws();
    let (code, body) = server.get("/requests?limit=2");
    assert_eq!(code, 200);
    assert!(body.contains("/page/1/2") && body.contains("/page/1/1") && !body.contains("/page/1/0"), "{body}");
    server.stop();
}
