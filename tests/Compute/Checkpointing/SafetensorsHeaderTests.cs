using Megatron.Compute.Checkpointing;
using Megatron.Compute.Configuration;
using Megatron.Testing;

namespace Megatron.Compute.Tests.Checkpointing;

public sealed class SafetensorsHeaderTests
{
    private static SafetensorsHeader Parse(string header, long dataBytes, bool strict = true) =>
        SafetensorsHeader.Parse(System.Text.Encoding.UTF8.GetBytes(header), dataBytes, "test.safetensors", strict);

    [Fact]
    public void Open_EachCorruptFile_RefusesWithItsCode()
    {
        using var folder = new TemporaryFolder();
        var path = folder.Combine("model.safetensors");
        var files = CorruptSafetensors.All().ToList();
        foreach (var file in files)
        {
            File.WriteAllBytes(path, file.Bytes);
            var exception = Assert.Throws<ConfigException>(() => SafetensorsFile.Open(path, strict: true).Dispose());
            Assert.True(exception.Errors is [var error] && error.Code == file.Code, $"{file.Title}: expected {file.Code}, got {exception.Message}");
            Assert.DoesNotContain(exception.Message, character => char.IsControl(character));
        }
        Assert.True(files.Count >= 150, $"only {files.Count} corrupt files");
        TestContext.Current.TestOutputHelper?.WriteLine($"{files.Count} corrupt files refused");
    }

    [Theory]
    [InlineData("{}", 0)]
    [InlineData(" \t\r\n{} \n\r\t", 0)]
    [InlineData("""{"__metadata__":{}}""", 0)]
    [InlineData("""{"a":{"dtype":"F32","shape":[],"data_offsets":[0,4]}}""", 4)]
    [InlineData("""{"a":{"dtype":"F32","shape":[0,7],"data_offsets":[0,0]}}""", 0)]
    [InlineData("""{"a":{"dtype":"F32","shape":[0],"data_offsets":[4,4]},"b":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}""", 4)]
    [InlineData("""{"b":{"dtype":"U8","shape":[1],"data_offsets":[1,2]},"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}""", 2)]
    [InlineData("""{"":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"../x":{"dtype":"F4","shape":[2],"data_offsets":[1,2]},"/a\u0001":{"dtype":"F6_E3M2","shape":[4],"data_offsets":[2,5]}}""", 5)]
    [InlineData("""{"a":{"data_offsets":[0,1],"\u0064type":"F8_E8M0","shape":[1]}}""", 1)]
    public void Parse_UnusualButSound_Accepts(string header, long dataBytes) => Parse(header, dataBytes);

    [Fact]
    public void Parse_UnknownField_IsIgnoredUnlessStrict()
    {
        const string header = """{"a":{"dtype":"U8","x":{"y":[1,{"z":2}]},"shape":[1],"w":null,"data_offsets":[0,1]}}""";
        Assert.Equal(1, Parse(header, 1, strict: false).Tensors["a"].SizeBytes);
        Assert.Throws<ConfigException>(() => Parse(header, 1));
    }

    [Fact]
    public void Parse_EveryDType_HasItsSize()
    {
        foreach (var dtype in Enum.GetValues<SafetensorsDType>())
        {
            var size = dtype.Bits();
            var header = Parse($$$"""{"a":{"dtype":"{{{dtype}}}","shape":[8],"data_offsets":[0,{{{size}}}]}}""", size);
            Assert.Equal(dtype, header.Tensors["a"].DType);
        }
        Assert.Equal(22, Enum.GetValues<SafetensorsDType>().Length);
    }

    [Fact]
    public void Parse_ManyEntries_IsFast()
    {
        var entries = Enumerable.Range(0, 200_000).Select(index => $$$"""
            "t{{{index}}}":{"dtype":"U8","shape":[1],"data_offsets":[{{{index}}},{{{index + 1}}}]}
            """);
        var start = TimeProvider.System.GetTimestamp();
        Assert.Equal(200_000, Parse("{" + string.Join(",", entries) + "}", 200_000).Tensors.Count);
        Assert.True(TimeProvider.System.GetElapsedTime(start) < TimeSpan.FromSeconds(5));
    }

    [Fact]
    public void Open_MissingFileOrFolder_SaysSo()
    {
        using var folder = new TemporaryFolder();
        Assert.Contains("ST000", Assert.Throws<ConfigException>(() => SafetensorsFile.Open(folder.Combine("no", "file"))).Message);
        Assert.Contains("ST000", Assert.Throws<ConfigException>(() => SafetensorsFile.Open(folder.Root)).Message);
        Assert.Contains("ST001", Assert.Throws<ConfigException>(() => SafetensorsFile.Open("/dev/zero")).Message);
    }
}
