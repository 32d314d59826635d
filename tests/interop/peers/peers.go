//go:build tools

// Package peers names the programs of others that scenarios run, so that go.mod and go.sum pin all they are made of.
package peers

import (
	_ "github.com/summerwind/h2spec/cmd/h2spec"
	_ "github.com/summerwind/h2spec/cmd/h2specd"
	_ "google.golang.org/grpc/interop/client"
	_ "google.golang.org/grpc/interop/server"
)
