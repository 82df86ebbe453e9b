using System.Runtime.InteropServices;
using Megatron.Compute.Native;
using Megatron.Testing;

namespace Megatron.Compute.Tests.Native;

/// <summary>Variables reach native code, which .NET's own functions do not; what the user has set stays.</summary>
[Collection<Alone>] // the C library's environment must not change while others read it
public sealed partial class NativeVariablesTests
{
    [Theory]
    [InlineData(null, false, null)]
    [InlineData(null, true, "EAGER")]
    [InlineData("LAZY", true, "LAZY")]
    public void SetVariables_SeveralGpus_ModulesAreEagerUnlessTheUserSaidOtherwise(string? given, bool severalGpus, string? expected) =>
        Check(severalGpus, ("CUDA_MODULE_LOADING", given, expected));

    [Theory]
    [InlineData("expandable_segments:True,max_split_size_mb:64", true, null, "1")]
    [InlineData("expandable_segments:True", true, "0", "0")]
    [InlineData("expandable_segments:True", false, null, null)]
    [InlineData("expandable_segments:False", true, null, null)]
    [InlineData(null, true, null, null)]
    public void SetVariables_ExpandableSegments_NcclKeepsToItsOwnBuffers(string? allocator, bool severalGpus, string? given, string? expected) =>
        Check(severalGpus, ("PYTORCH_CUDA_ALLOC_CONF", allocator, allocator), ("NCCL_P2P_DIRECT_DISABLE", given, expected), ("CUDA_MODULE_LOADING", "LAZY", "LAZY"));

    private static void Check(bool severalGpus, params (string Name, string? Given, string? Expected)[] variables)
    {
        string?[] before = [.. variables.Select(variable => Read(variable.Name))];
        try
        {
            foreach (var (name, given, _) in variables) Write(name, given);
            LibTorch.SetVariables(new LibTorchOptions { OwnsSeveralGpus = severalGpus });
            foreach (var (name, _, expected) in variables) Assert.Equal(expected, Read(name));
        }
        finally
        {
            for (var i = 0; i < variables.Length; i++) Write(variables[i].Name, before[i]);
        }
    }

    private static string? Read(string name) => Marshal.PtrToStringUTF8(GetEnvironment(name));

    private static void Write(string name, string? value) => _ = value is null ? Unset(name) : Nccl.SetEnvironment(name, value, overwrite: 1);

    [LibraryImport("libc", EntryPoint = "getenv", StringMarshalling = StringMarshalling.Utf8)]
    private static partial nint GetEnvironment(string name);

    [LibraryImport("libc", EntryPoint = "unsetenv", StringMarshalling = StringMarshalling.Utf8)]
    private static partial int Unset(string name);
}
