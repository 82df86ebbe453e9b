using Megatron.Compute.Configuration;

namespace Megatron.Compute.Tests.Configuration;

public sealed class ArgsChainTests : IDisposable
{
    private readonly string _folder = Directory.CreateTempSubdirectory("megatron-args-").FullName;

    public void Dispose() => Directory.Delete(_folder, recursive: true);

    [Fact]
    public void Write_ThenRead_GivesTheSameValuesWithoutSecrets()
    {
        ArgsFile.Write(_folder, new TrainingConfig { HubToken = "secret", System = "Be brief.\nAlways.", Dataset = ["ä.jsonl#5"] });
        var text = File.ReadAllText(Path.Combine(_folder, "args.json"));
        Assert.DoesNotContain("secret", text, StringComparison.Ordinal);
        Assert.Contains("ä.jsonl#5", text, StringComparison.Ordinal);
        Assert.Equal(new TrainingConfig { System = "Be brief.\nAlways.", Dataset = ["ä.jsonl#5"] }, TrainingConfig.FromJson(text));
        Assert.Equal(["args.json"], Directory.GetFiles(_folder).Select(Path.GetFileName));
    }

    [Fact]
    public void Fill_FromLoadFolder_FillsOnlyWhatWasNotGiven()
    {
        ArgsFile.Write(_folder, new TrainingConfig
        {
            Model = "/models/qwen", Template = "qwen3", System = "Be brief.", TorchDtype = "bfloat16", Lr = 9, Dataset = ["train.jsonl"],
        });
        var config = new TrainingConfig { Load = _folder, Template = "qwen2_5" };
        var fill = ArgsChain.Fill(config, new GivenOptions(["load", "template"]));
        Assert.Equal(config with { Model = "/models/qwen", System = "Be brief.", TorchDtype = "bfloat16" }, fill.Config);
        Assert.Equal(Path.Combine(_folder, "args.json"), fill.Source);
        Assert.Contains("system", fill.Filled);
        Assert.DoesNotContain("template", fill.Filled);
    }

    [Fact]
    public void Fill_LoadDataArgs_TakesTheDataOptionsToo()
    {
        ArgsFile.Write(_folder, new TrainingConfig { Dataset = ["train.jsonl"], SplitDatasetRatio = 0.5 });
        var config = new TrainingConfig { Model = _folder, LoadDataArgs = true };
        var filled = ArgsChain.Fill(config, new GivenOptions(["model", "load_data_args"])).Config;
        Assert.Equal(config with { Dataset = ["train.jsonl"], SplitDatasetRatio = 0.5 }, filled);
    }

    [Fact]
    public void Fill_LoadArgsFalseOrNoFile_ChangesNothing()
    {
        var config = new TrainingConfig { Model = _folder };
        Assert.Equal(new ArgsFill(config, null, []).Config, ArgsChain.Fill(config, GivenOptions.None).Config);
        ArgsFile.Write(_folder, new TrainingConfig { System = "x" });
        var off = config with { LoadArgs = false };
        Assert.Equal(off, ArgsChain.Fill(off, GivenOptions.None).Config);
    }

    [Fact]
    public void Fill_FirstFolderWithAFile_IsTheSource()
    {
        var second = Directory.CreateDirectory(Path.Combine(_folder, "second")).FullName;
        ArgsFile.Write(second, new TrainingConfig { System = "second" });
        var config = new TrainingConfig { Model = _folder, Load = second };
        Assert.Equal("second", ArgsChain.Fill(config, GivenOptions.None).Config.System);
        ArgsFile.Write(_folder, new TrainingConfig { System = "first" });
        Assert.Equal("first", ArgsChain.Fill(config, GivenOptions.None).Config.System);
    }

    [Fact]
    public void Fill_PrecisionFlagGiven_DoesNotTakeTheDtype()
    {
        ArgsFile.Write(_folder, new TrainingConfig { TorchDtype = "float16" });
        var config = new TrainingConfig { Model = _folder, Bf16 = true };
        Assert.Null(ArgsChain.Fill(config, new GivenOptions(["model", "bf16"])).Config.TorchDtype);
    }

    [Fact]
    public void Fill_FileOfTheReferenceSystem_UnknownKeysAndTorchPrefixAreFine()
    {
        File.WriteAllText(Path.Combine(_folder, "args.json"),
            """{"swift_version": "3.5.0.dev0", "model": "Qwen/Qwen2.5", "torch_dtype": "torch.bfloat16", "system": null, "loss_scale": {"x": 1}}""");
        var filled = ArgsChain.Fill(new TrainingConfig { Load = _folder }, GivenOptions.None).Config;
        Assert.Equal("bfloat16", filled.TorchDtype);
        Assert.Equal("Qwen/Qwen2.5", filled.Model);
    }

    [Fact]
    public void Fill_DamagedFile_NamesFileAndLine()
    {
        var path = Path.Combine(_folder, "args.json");
        File.WriteAllText(path, "{\n\"model\"");
        var failure = Assert.Throws<ConfigException>(() => ArgsChain.Fill(new TrainingConfig { Load = _folder }, GivenOptions.None));
        Assert.Equal($"CFG002 {path} is not valid JSON in line 2; correct it there.", failure.Message);
    }

    [Fact]
    public void Fill_WrongType_NamesFileAndOption()
    {
        File.WriteAllText(Path.Combine(_folder, "args.json"), """{"torch_dtype": "float8"}""");
        var failure = Assert.Throws<ConfigException>(() => ArgsChain.Fill(new TrainingConfig { Load = _folder }, GivenOptions.None));
        Assert.EndsWith("args.json: --torch_dtype = float8 is not known; choose float16, bfloat16 or float32.", failure.Message, StringComparison.Ordinal);
    }
}
