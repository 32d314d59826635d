// Istio's discovery server over a file of configuration, without Kubernetes. A test only because what Istio has for this
// asks for one.
package discovery

import (
	"fmt"
	"net"
	"os"
	"testing"

	"istio.io/istio/pilot/test/xds"
	"istio.io/istio/pkg/config/mesh"
)

func TestServe(t *testing.T) {
	config, err := os.ReadFile(os.Getenv("CONFIG"))
	if err != nil {
		t.Fatal(err)
	}
	defaults := mesh.DefaultMeshConfig()
	defaults.AccessLogFile = "/dev/stdout"
	xds.NewFakeDiscoveryServer(t, xds.FakeOptions{
		ConfigString:    string(config),
		MeshConfig:      defaults,
		ListenerBuilder: func() (net.Listener, error) { return net.Listen("tcp", "127.0.0.1:25010") },
	})
	fmt.Println("SERVING")
	select {}
}
