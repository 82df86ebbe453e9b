using System.Runtime.InteropServices;
using Megatron.Compute.Configuration;
using Megatron.Compute.Native;
using Megatron.Testing;

namespace Megatron.Compute.Tests.Native;

public sealed class ShimCopyTests
{
    private static string Original => NativeSearch.FindShim("", NativeSearch.Default());

    [Fact]
    public void MakeOptional_TheNewestDemand_ChangesOneFlagAndNothingElse()
    {
        var image = File.ReadAllBytes(Original);
        var patched = image.ToArray();
        Assert.Contains(("GLIBCXX_3.4.32", false), ElfVersionNeeds.Read(image));
        Assert.True(ElfVersionNeeds.MakeOptional(patched, "GLIBCXX_3.4.32"));
        var changed = Assert.Single(Enumerable.Range(0, image.Length), index => image[index] != patched[index]);
        Assert.Equal(2, patched[changed] ^ image[changed]);
        Assert.Equal([("GLIBCXX_3.4.32", true)], ElfVersionNeeds.Read(patched).Where(need => need.IsWeak));
    }

    [Fact]
    public void MakeOptional_VersionThatIsNotDemanded_ChangesNothing()
    {
        var image = File.ReadAllBytes(Original);
        var before = image.ToArray();
        Assert.False(ElfVersionNeeds.MakeOptional(image, "GLIBCXX_9.9"));
        Assert.Equal(before, image);
    }

    [Theory]
    [InlineData(0)]
    [InlineData(63)]
    [InlineData(4096)]
    public void MakeOptional_CutOrForeignFile_IsABadImage(int length)
    {
        Assert.Throws<BadImageFormatException>(() => ElfVersionNeeds.MakeOptional(File.ReadAllBytes(Original).AsSpan(0, length), "GLIBCXX_3.4.32"));
        Assert.Throws<BadImageFormatException>(() => ElfVersionNeeds.MakeOptional(new byte[length], "GLIBCXX_3.4.32"));
    }

    [Fact]
    public void Load_TwiceIntoACache_WritesOneFileAndRepairsADamagedOne()
    {
        using var folder = new TemporaryFolder();
        var first = ShimCopy.Load(Original, folder.Root, NativeLibrary.Load);
        Assert.Equal(first.Path, ShimCopy.Load(Original, folder.Root, NativeLibrary.Load).Path);
        var content = File.ReadAllBytes(first.Path);
        // A new inode, as an interrupted writer or a cleaner would leave it: the mapped file itself stays whole.
        File.Delete(first.Path);
        File.WriteAllBytes(first.Path, content[..100]);
        ShimCopy.Load(Original, folder.Root, NativeLibrary.Load);
        Assert.Equal(content, File.ReadAllBytes(first.Path));
        Assert.Single(Directory.GetFiles(folder.Root, "*", SearchOption.AllDirectories));
    }

    [Fact]
    public void Load_CacheThatCannotBeWritten_FallsBackToTheTemporaryFolder()
    {
        using var folder = new TemporaryFolder();
        var file = folder.Combine("a-file");
        File.WriteAllText(file, "");
        var copy = ShimCopy.Load(Original, Path.Combine(file, "below"), path => path.Length);
        Assert.StartsWith(Path.GetTempPath(), copy.Path, StringComparison.Ordinal);
        Assert.False(File.Exists(copy.Path), "the temporary copy is deleted once it is loaded");
    }

    [Fact]
    public void Load_OnThisSystem_PatchesOnlyWhenTheStandardLibraryIsOlder()
    {
        var needsPatch = ShimCopy.NeedsPatch(NativeLibrary.Load("libstdc++.so.6"));
        Assert.Equal(needsPatch, LibTorch.Load().IsShimPatched);
    }

    [Fact]
    public void Resolve_LibraryWithoutTheFunctions_NamesEachMissingOne()
    {
        var other = NativeLibrary.Load("libstdc++.so.6");
        var error = Assert.Throws<ConfigException>(() => StableAbi.Resolve(other, other, "/some/lib", new Version(2, 10, 0)));
        Assert.Equal("NATIVE005", Assert.Single(error.Errors).Code);
        Assert.Contains("torch_call_dispatcher, aoti_torch_new_tensor_handle", error.Message, StringComparison.Ordinal);
        Assert.Equal("NATIVE004", Assert.Single(Assert.Throws<ConfigException>(() => StableAbi.ReadVersion(other, "/some/lib")).Errors).Code);
    }
}
