using Megatron.Compute.Checkpointing;
using Megatron.Compute.Configuration;
using Megatron.Compute.Native;
using Megatron.Testing;
using static TorchSharp.torch;

namespace Megatron.Compute.Tests.Checkpointing;

public sealed class SafetensorsFileTests
{
    public static TheoryData<string> Models => ["llama3.1-dense", "qwen2.5-dense", "qwen3-dense", "qwen2-moe", "qwen3-moe"];

    [Theory]
    [MemberData(nameof(Models))]
    public void Writer_GoldenModelReadAndWrittenAgain_GivesTheSameBytes(string model)
    {
        using var leaks = LeakCheck.Start();
        using var folder = new TemporaryFolder();
        var source = Repository.Asset("golden", model, "model.safetensors");
        var copy = folder.Combine("copy.safetensors");
        using (var file = SafetensorsFile.Open(source, strict: true))
        using (var writer = new SafetensorsWriter(copy, [.. file.Tensors.Values.Select(entry => new SafetensorsSpec(entry.Name, entry.DType, entry.Shape))], file.Metadata))
        {
            foreach (var name in file.Tensors.Keys)
            {
                using var tensor = file.ReadTensor(name);
                writer.Write(tensor);
                Assert.Equal(file.Entry(name).Shape, tensor.shape);
            }
            var written = writer.Finish();
            Assert.Equal(new FileInfo(source).Length, written.SizeBytes);
            Assert.Equal(Convert.ToHexStringLower(System.IO.Hashing.XxHash128.Hash(File.ReadAllBytes(copy))), written.XxHash128);
        }
        Assert.Equal(File.ReadAllBytes(source), File.ReadAllBytes(copy));
    }

    [Theory]
    [InlineData(ScalarType.Bool)]
    [InlineData(ScalarType.Byte)]
    [InlineData(ScalarType.Int8)]
    [InlineData(ScalarType.Int16)]
    [InlineData(ScalarType.Int32)]
    [InlineData(ScalarType.Int64)]
    [InlineData(ScalarType.Float16)]
    [InlineData(ScalarType.BFloat16)]
    [InlineData(ScalarType.Float32)]
    [InlineData(ScalarType.Float64)]
    [InlineData(ScalarType.ComplexFloat32)]
    public void WriteThenRead_EveryLoadableDType_IsBitIdentical(ScalarType dtype)
    {
        using var leaks = LeakCheck.Start();
        using var scope = NewDisposeScope();
        using var folder = new TemporaryFolder();
        var path = folder.Combine("x.safetensors");
        var values = arange(0, 105, dtype: float32).view(3, 5, 7).to(dtype).transpose(0, 2);
        WriteOne(path, "x", TensorBytes.ToSafetensors(dtype), values);
        using var file = SafetensorsFile.Open(path, strict: true);
        var read = file.ReadTensor("x");
        Assert.Equal(dtype, read.dtype);
        Assert.True(read.Equals(values));
        Assert.True(values.contiguous().bytes.SequenceEqual(read.bytes));
    }

    [Fact]
    public void ReadInto_RangeAndCast_GivesTheElements()
    {
        using var leaks = LeakCheck.Start();
        using var scope = NewDisposeScope();
        using var folder = new TemporaryFolder();
        var path = folder.Combine("x.safetensors");
        WriteOne(path, "x", SafetensorsDType.F32, arange(0, 60, dtype: float32).view(6, 10));
        using var file = SafetensorsFile.Open(path);
        var destination = zeros(3, 4, dtype: bfloat16);
        file.ReadInto("x", destination, 17);
        Assert.True(destination.to(float32).view(-1).Equals(arange(17, 29, dtype: float32)));
        var strided = zeros(4, 3).t();
        file.ReadInto("x", strided, 48);
        Assert.True(strided.contiguous().view(-1).Equals(arange(48, 60, dtype: float32)));
        Assert.Throws<ArgumentOutOfRangeException>(() => file.ReadInto("x", destination, 49));
        Assert.Throws<ArgumentOutOfRangeException>(() => file.ReadInto("x", destination, -1));
        Assert.Throws<ConfigException>(() => file.ReadTensor("y"));
        var bytes = new byte[8];
        file.Read("x", 4, bytes);
        Assert.Equal([1f, 2f], [BitConverter.ToSingle(bytes, 0), BitConverter.ToSingle(bytes, 4)]);
    }

    [Fact]
    public void WriteThenRead_LargerThanOneSliceScalarAndEmpty_RoundTrip()
    {
        using var leaks = LeakCheck.Start();
        using var scope = NewDisposeScope();
        using var folder = new TemporaryFolder();
        var path = folder.Combine("x.safetensors");
        var large = arange(0, 10_000_001, dtype: int32);
        using (var writer = new SafetensorsWriter(path, [new("s", SafetensorsDType.F32, []), new("e", SafetensorsDType.F32, [0, 3]), new("l", SafetensorsDType.I32, [10_000_001])], SafetensorsWriter.PyTorchFormat))
        {
            writer.Write(tensor(2.5f));
            writer.Write(zeros(0, 3));
            writer.Write(large);
            writer.Finish();
        }
        using var file = SafetensorsFile.Open(path, strict: true);
        Assert.Equal(2.5f, file.ReadTensor("s").item<float>());
        Assert.Equal([0, 3], file.ReadTensor("e").shape);
        Assert.True(file.ReadTensor("l").Equals(large));
        Assert.Equal("pt", file.Metadata["format"]);
        Assert.Equal(0, (BitConverter.ToInt64(File.ReadAllBytes(path)[..8]) + 8) % 8);
    }

    [Fact]
    public void Read_FileCutAfterOpening_IsRefused()
    {
        using var folder = new TemporaryFolder();
        var path = folder.Combine("x.safetensors");
        File.WriteAllBytes(path, CorruptSafetensors.Sound());
        using var file = SafetensorsFile.Open(path);
        using (var handle = File.OpenHandle(path, FileMode.Open, FileAccess.Write, FileShare.ReadWrite)) RandomAccess.SetLength(handle, 160);
        Assert.Contains("ST023", Assert.Throws<ConfigException>(() => file.Read("a", 0, new byte[16])).Message);
    }

    [Fact]
    public void ReadTensor_DTypeThatLibtorchCannotHold_IsRefusedByName()
    {
        using var folder = new TemporaryFolder();
        var path = folder.Combine("x.safetensors");
        File.WriteAllBytes(path, CorruptSafetensors.Make("""{"a":{"dtype":"F4","shape":[2],"data_offsets":[0,1]}}""", 1));
        using var file = SafetensorsFile.Open(path);
        Assert.Contains("F4", Assert.Throws<ConfigException>(() => file.ReadTensor("a")).Message);
    }

    [Fact]
    public void Writer_MisusedOrDiskFull_Throws()
    {
        using var leaks = LeakCheck.Start();
        using var scope = NewDisposeScope();
        using var folder = new TemporaryFolder();
        using (var writer = new SafetensorsWriter(folder.Combine("x"), [new("x", SafetensorsDType.F32, [2])], SafetensorsWriter.PyTorchFormat))
        {
            Assert.Throws<InvalidOperationException>(() => writer.Write(zeros(3)));
            Assert.Throws<InvalidOperationException>(() => writer.Finish());
        }
        Assert.Throws<IOException>(() =>
        {
            using var writer = new SafetensorsWriter("/dev/full", [new("x", SafetensorsDType.U8, [2])], SafetensorsWriter.PyTorchFormat);
            writer.Write([1, 2]);
            writer.Finish();
        });
        // Nobody has 100 TB: the space is reserved before anything is written.
        Assert.Throws<IOException>(() => new SafetensorsWriter(folder.Combine("y"), [new("x", SafetensorsDType.U8, [100_000_000_000_000])], SafetensorsWriter.PyTorchFormat));
    }

    [Fact]
    public void FileSync_FailingFsyncOpenAndRename_AreReported()
    {
        using var folder = new TemporaryFolder();
        using (var handle = File.OpenHandle("/dev/null", FileMode.Open, FileAccess.Write))
            Assert.Contains("fsync", Assert.Throws<IOException>(() => FileSync.Flush(handle, "/dev/null")).Message);
        Assert.Contains("open", Assert.Throws<IOException>(() => FileSync.FlushPath(folder.Combine("none"))).Message);
        Assert.Contains("rename", Assert.Throws<IOException>(() => FileSync.Rename(folder.Combine("none"), folder.Combine("other"))).Message);
        FileSync.FlushPath(folder.Root);
        FileSync.ReplaceFile(folder.Combine("hint.txt"), "1"u8);
        FileSync.ReplaceFile(folder.Combine("hint.txt"), "20"u8);
        Assert.Equal("20", File.ReadAllText(folder.Combine("hint.txt")));
        Assert.Single(Directory.GetFiles(folder.Root));
    }

    private static void WriteOne(string path, string name, SafetensorsDType dtype, Tensor values)
    {
        using var writer = new SafetensorsWriter(path, [new(name, dtype, values.shape)], SafetensorsWriter.PyTorchFormat);
        writer.Write(values);
        writer.Finish();
    }
}
