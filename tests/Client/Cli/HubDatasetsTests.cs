using Megatron.Client.Cli;
using Megatron.Compute.Configuration;
using Megatron.Testing;

namespace Megatron.Client.Tests.Cli;

public sealed class HubDatasetsTests : IDisposable
{
    private readonly TemporaryFolder folder = new();

    public void Dispose() => folder.Dispose();

    [Fact]
    public void Resolve_HuggingFaceSnapshot_GivesTheRevisionOfMain()
    {
        Write("hf/datasets--a--b/snapshots/old/x.jsonl");
        Write("hf/datasets--a--b/snapshots/new/x.jsonl");
        Write("hf/datasets--a--b/refs/main", "new\n");
        Assert.Equal(folder.Combine("hf/datasets--a--b/snapshots/new#50"), Hubs().Resolve("hf::a/b#50"));
        Assert.Equal(folder.Combine("hf/datasets--a--b/snapshots/new"), Hubs().Resolve("a/b"));
    }

    [Fact]
    public void Resolve_SplitFiles_TakesTheTrainingSplit()
    {
        Write("hf/datasets--a--b/snapshots/s/data/train-00000-of-00001.parquet");
        Write("hf/datasets--a--b/snapshots/s/data/test-00000-of-00001.parquet");
        Assert.Equal(folder.Combine("hf/datasets--a--b/snapshots/s") + "/**/train*", Hubs().Resolve("hf::a/b"));
    }

    [Fact]
    public void Resolve_Subset_IsAFolderOrABeginningOfNames()
    {
        Write("ms/hub/datasets/a/b/en/x.jsonl");
        Write("ms/hub/datasets/a/b/zh_1.jsonl");
        Assert.Equal(folder.Combine("ms/hub/datasets/a/b/en"), Hubs().Resolve("ms::a/b:en"));
        Assert.Equal(folder.Combine("ms/hub/datasets/a/b") + "/**/zh*#5", Hubs().Resolve("ms::a/b:zh#5"));
        Assert.Contains("no data files of a subset fr", Refused("ms::a/b:fr"));
    }

    [Fact]
    public void Resolve_NotThere_NamesTheFoldersLookedIn()
    {
        var message = Refused("hf::no/body");
        Assert.Contains(folder.Combine("hf/datasets--no--body"), message);
        Assert.Contains("nothing is fetched", message);
        Assert.Contains(folder.Combine("ms/datasets/no/body"), Refused("ms::no/body"));
    }

    [Theory]
    [InlineData("rows.jsonl")]
    [InlineData("/data/rows.jsonl#5")]
    [InlineData("./a/b")]
    [InlineData("a/b.jsonl")]
    [InlineData("a/*.jsonl")]
    public void Resolve_Path_StaysAsItIs(string text) => Assert.Equal(text, Hubs().Resolve(text));

    [Fact]
    public void CacheFolders_Variables_GoBeforeTheUsersCache()
    {
        var variables = new Dictionary<string, string> { ["HOME"] = "/u", ["HF_HOME"] = "/hf", ["MEGATRON_CACHE"] = "/m" };
        Assert.Equal(new CacheFolders("/m", "/hf/hub", "/u/.cache/modelscope"), CacheFolders.Read(name => variables.GetValueOrDefault(name)));
        Assert.Equal(new CacheFolders(null, null, null), CacheFolders.Read(_ => null));
    }

    private HubDatasets Hubs() => new(new CacheFolders(null, folder.Combine("hf"), folder.Combine("ms")));

    private string Refused(string text) => Assert.Throws<ConfigException>(() => Hubs().Resolve(text)).Errors[0].Message;

    private void Write(string name, string text = "x")
    {
        var path = folder.Combine(name);
        Directory.CreateDirectory(Path.GetDirectoryName(path) ?? "");
        File.WriteAllText(path, text);
    }
}
