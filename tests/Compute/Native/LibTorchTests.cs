using Megatron.Compute.Configuration;
using Megatron.Compute.Native;
using Megatron.Testing;
using static TorchSharp.torch;

namespace Megatron.Compute.Tests.Native;

public sealed class LibTorchTests
{
    [Fact]
    public void Load_Again_ReturnsTheSameLibraryAndItComputes()
    {
        var first = LibTorch.Load();
        Assert.Same(first, LibTorch.Load(new LibTorchOptions { Folder = first.Folder }));
        Assert.Contains(LibTorch.TestedVersions, tested => tested.Major == first.Version.Major && tested.Minor == first.Version.Minor);
        using var leaks = LeakCheck.Start();
        using var ones_34 = ones(3, 4);
        using var sum = ones_34.sum();
        Assert.Equal(12f, sum.item<float>());
    }

    [Fact]
    public async Task Load_FromManyThreads_GivesOneLibrary()
    {
        var loads = Enumerable.Range(0, 8).Select(_ => Task.Factory.StartNew(() => LibTorch.Load(), TaskCreationOptions.LongRunning));
        Assert.Single((await Task.WhenAll(loads)).Distinct());
    }

    [Fact]
    public void Load_OtherFolderInTheSameProcess_IsRefused()
    {
        var error = Assert.Throws<ConfigException>(() => LibTorch.Load(new LibTorchOptions { Folder = "/elsewhere" }));
        Assert.Equal("NATIVE008", Assert.Single(error.Errors).Code);
        Assert.Contains("/elsewhere", error.Message, StringComparison.Ordinal);
    }

    [Fact]
    public void Load_UsesTheNuGetFolder_NoCopyInTheOutput()
    {
        Assert.Empty(Directory.GetFiles(AppContext.BaseDirectory, "libtorch*.so", SearchOption.AllDirectories));
    }

    [Fact]
    public void FindLibTorch_AskedFolderWithoutLibTorch_NamesItAndTheRemedy()
    {
        var error = Assert.Throws<ConfigException>(() => NativeSearch.FindLibTorch("/nowhere", NativeSearch.Default()));
        Assert.Equal("NATIVE002", Assert.Single(error.Errors).Code);
        Assert.Contains("/nowhere", error.Message, StringComparison.Ordinal);
        Assert.Contains("MEGATRON_LIBTORCH", error.Message, StringComparison.Ordinal);
    }

    [Fact]
    public void FindLibTorch_Nowhere_ListsEveryPlace()
    {
        var places = new NativePlaces("/program/libtorch", ["/program"], "/package", null);
        var error = Assert.Throws<ConfigException>(() => NativeSearch.FindLibTorch(null, places));
        Assert.Equal("NATIVE002", Assert.Single(error.Errors).Code);
        Assert.Contains("/program/libtorch, /program, /package", error.Message, StringComparison.Ordinal);
    }

    [Fact]
    public void FindLibTorch_BesideTheProgram_ComesBeforeThePackage()
    {
        using var folder = new TemporaryFolder();
        var program = Directory.CreateDirectory(folder.Combine("program")).FullName;
        var package = Directory.CreateDirectory(folder.Combine("package")).FullName;
        File.WriteAllText(Path.Combine(package, "libtorch_cpu.so"), "");
        Assert.Equal(package, NativeSearch.FindLibTorch(null, new NativePlaces(program, [], package, null)));
        File.WriteAllText(Path.Combine(program, "libtorch_cpu.so"), "");
        Assert.Equal(program, NativeSearch.FindLibTorch(null, new NativePlaces(program, [], package, null)));
    }

    [Fact]
    public void FindLibTorch_AskedBesideAnotherThatDotnetWouldFind_IsRefused()
    {
        using var folder = new TemporaryFolder();
        var program = Directory.CreateDirectory(folder.Combine("program")).FullName;
        var asked = Directory.CreateDirectory(folder.Combine("asked")).FullName;
        File.WriteAllText(Path.Combine(asked, "libtorch_cpu.so"), "");
        var places = new NativePlaces(folder.Combine("program", "libtorch"), [program], null, null);
        Assert.Equal(asked, NativeSearch.FindLibTorch(asked, places));
        File.WriteAllText(Path.Combine(program, "libtorch_cpu.so"), "");
        var error = Assert.Throws<ConfigException>(() => NativeSearch.FindLibTorch(asked, places));
        Assert.Equal("NATIVE010", Assert.Single(error.Errors).Code);
        Assert.Equal(program, NativeSearch.FindLibTorch(program, places));
    }

    [Fact]
    public void FindShim_Nowhere_ListsEveryPlace()
    {
        var error = Assert.Throws<ConfigException>(() => NativeSearch.FindShim("/libtorch", new NativePlaces("/program/libtorch", ["/program"], null, "/package")));
        Assert.Equal("NATIVE006", Assert.Single(error.Errors).Code);
        Assert.Contains("/program/libtorch, /program, /package, /libtorch;", error.Message, StringComparison.Ordinal);
    }

    [Fact]
    public void DispatcherCall_UnknownOperator_ThrowsAndNamesIt()
    {
        var error = Assert.Throws<InvalidOperationException>(() => Dispatcher.Call("aten::no_such_operator", "", 1));
        Assert.Contains("aten::no_such_operator", error.Message, StringComparison.Ordinal);
    }

    [Fact]
    public void DispatcherCall_ManyTimes_KeepsNothing()
    {
        using var leaks = LeakCheck.Start();
        using var input = ones(1 << 18, dtype: ScalarType.Float32);
        RunAndDispose(input, 50);
        var before = Environment.WorkingSet;
        RunAndDispose(input, 1000);
        // 1000 results of 1 MiB each would be a gigabyte.
        Assert.True(Environment.WorkingSet - before < 100L << 20);

        static void RunAndDispose(Tensor input, int times)
        {
            for (var index = 0; index < times; index++)
            {
                using var result = Dispatcher.Call("aten::mul", "Tensor", 1, input, input)[0];
                Assert.NotEqual(Dispatcher.DataPointer(input), Dispatcher.DataPointer(result));
            }
        }
    }

    [Fact]
    public void DispatcherCall_OptionalTensor_IsPassed()
    {
        using var leaks = LeakCheck.Start();
        using var input = tensor(new[] { -2f, 0.5f, 3f });
        using var low = tensor(new[] { -1f, -1f, -1f });
        using var clamped = Dispatcher.Call("aten::clamp", "Tensor", 1, input, StableValue.Optional(low), StableValue.Optional((Tensor?)null))[0];
        Assert.Equal([-1f, 0.5f, 3f], clamped.data<float>().ToArray());
        Assert.Equal([-2f, 0.5f, 3f], input.data<float>().ToArray());
    }
}
