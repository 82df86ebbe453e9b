// Compiled into each test project whose tests touch tensors (tests/Directory.Build.props): a module initializer runs only in the assembly that is
// entered, so this one cannot live in Megatron.Testing.

using System.Runtime.CompilerServices;
using Megatron.Testing;

internal static class ModuleSetup
{
    [ModuleInitializer]
    internal static void LoadTorch() => TorchTestSetup.EnsureLoaded();
}
