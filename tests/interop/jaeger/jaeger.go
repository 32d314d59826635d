// A collector as people run it, small enough for a test: the OTLP receiver of the OpenTelemetry Collector (gRPC and
// HTTP), and behind it Jaeger's storage in memory and Jaeger's query API (`/api/traces/{id}`, `/api/services`, ...).
//
// Prints one line with the ports of gRPC, HTTP and the query API, and ends when its standard input does.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"

	"github.com/jaegertracing/jaeger/cmd/query/app"
	"github.com/jaegertracing/jaeger/cmd/query/app/querysvc"
	"github.com/jaegertracing/jaeger/pkg/tenancy"
	"github.com/jaegertracing/jaeger/plugin/storage/memory"
	translator "github.com/open-telemetry/opentelemetry-collector-contrib/pkg/translator/jaeger"
	"go.opentelemetry.io/collector/component"
	"go.opentelemetry.io/collector/consumer"
	"go.opentelemetry.io/collector/pdata/ptrace"
	"go.opentelemetry.io/collector/receiver"
	"go.opentelemetry.io/collector/receiver/otlpreceiver"
	metrics "go.opentelemetry.io/otel/metric/noop"
	traces "go.opentelemetry.io/otel/trace/noop"
	"go.uber.org/zap"
)

func main() {
	store := memory.NewStore()
	grpcPort, httpPort := receive(store)
	query := listen()
	router := app.NewRouter()
	service := querysvc.NewQueryService(store, store, querysvc.QueryServiceOptions{})
	api := app.NewAPIHandler(service, tenancy.NewManager(&tenancy.Options{}))
	api.RegisterRoutes(router)
	go func() { log.Fatal(http.Serve(query, router)) }()
	fmt.Println(grpcPort, httpPort, port(query))
	_, _ = io.Copy(io.Discard, os.Stdin)
}

// receive starts the receiver on two free ports.
func receive(store *memory.Store) (int, int) {
	next, err := consumer.NewTraces(func(ctx context.Context, spans ptrace.Traces) error {
		batches, err := translator.ProtoFromTraces(spans)
		if err != nil {
			return err
		}
		for _, batch := range batches {
			for _, span := range batch.Spans {
				if span.Process == nil {
					span.Process = batch.Process
				}
				if err := store.WriteSpan(ctx, span); err != nil {
					return err
				}
			}
		}
		return nil
	})
	check(err)
	for attempt := 0; attempt < 50; attempt++ {
		grpcPort, httpPort, err := tryToReceive(next)
		if err == nil {
			return grpcPort, httpPort
		}
		// Somebody else has taken a port that was free a moment ago.
		log.Print(err)
	}
	log.Fatal("no free ports")
	return 0, 0
}

func tryToReceive(next consumer.Traces) (int, int, error) {
	first, second := listen(), listen()
	grpcPort, httpPort := port(first), port(second)
	check(errors.Join(first.Close(), second.Close()))
	factory := otlpreceiver.NewFactory()
	config := factory.CreateDefaultConfig().(*otlpreceiver.Config)
	config.GRPC.NetAddr.Endpoint = fmt.Sprintf("127.0.0.1:%d", grpcPort)
	config.HTTP.Endpoint = fmt.Sprintf("127.0.0.1:%d", httpPort)
	settings := receiver.Settings{
		ID: component.NewID(factory.Type()),
		TelemetrySettings: component.TelemetrySettings{
			Logger:         zap.NewNop(),
			TracerProvider: traces.NewTracerProvider(),
			MeterProvider:  metrics.NewMeterProvider(),
			ReportStatus:   func(*component.StatusEvent) {},
		},
	}
	made, err := factory.CreateTracesReceiver(context.Background(), settings, config, next)
	check(err)
	err = made.Start(context.Background(), host{})
	if err != nil {
		_ = made.Shutdown(context.Background())
	}
	return grpcPort, httpPort, err
}

// host has nothing beside the receiver.
type host struct{}

func (host) GetFactory(component.Kind, component.Type) component.Factory { return nil }

func (host) GetExtensions() map[component.ID]component.Component { return nil }

func listen() net.Listener {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	check(err)
	return listener
}

func port(listener net.Listener) int {
	return listener.Addr().(*net.TCPAddr).Port
}

func check(err error) {
	if err != nil {
		log.Fatal(err)
	}
}
