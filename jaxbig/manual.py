"""What `jaxbig --help` and `jaxbig COMMAND --help` say."""

MAIN = """\
usage: jaxbig [--help] [--version] [--debug] COMMAND ...

Techniques for the whole life of a large JAX model: train, transfer, tune, distill, prune, quantise, export.

commands:
  run FILE [--field value ...]   run an experiment: a Python file with a frozen dataclass `Config` and `main(config)`
  run FILE --help                show what the experiment does, and each field's default and meaning
  data show PATH [--out PNG]     show what a file or folder of data holds: statistics, classes, a picture of a batch
  info PATH                      show what a run, a checkpoint or a published model holds, and whether it is whole
  convert SRC DST                write a published model's folder in another dtype, or in files of another size
  compare RUN RUN...             show runs side by side: a table, and with --out FILE.html their learning curves
  generate PATH PROMPT           go on with a prompt, by a model: greedy or sampled, as it comes
  chat PATH                      talk with a model that has a chat template
  peft list --model NAME         show what each technique would train, hold and compute on a model, allocating nothing

options:
  -h, --help    show this message
  --version     show the version
  --debug       show the whole traceback of an error (may stand anywhere on the line)

exit codes: 0 done, 1 it failed, 2 the command line is wrong, 130 interrupted

example: jaxbig run experiments/quickstart.py --epochs 5 --seed 1
"""

RUN = """\
usage: jaxbig run FILE [--field value ...]

Run FILE, a Python file with a frozen dataclass `Config` and `main(config)`. Each field of `Config` is an option.

  jaxbig run FILE --help   show what the experiment does, and each field's default and meaning

A smallest experiment:

  import dataclasses

  @dataclasses.dataclass(frozen=True)
  class Config:
      epochs: int = 5
      \"\"\"Passes over the training data.\"\"\"

  def main(config: Config) -> None:
      print(config.epochs)
"""

DATA = """\
usage: jaxbig data show PATH [--n N] [--out FILE.png] [--part NAME] [--rows 10000] [--seed 0] [--size PIXELS]

Show what PATH holds: the number of examples, each array's shape, type and range, the classes and how often they
occur, words of text, seconds of recordings. The format is told by what is inside, not by the name:

  files     IDX, npz (arrays, MedMNIST, packed images or recordings), separated values, JSON, jsonl, text, wav, images;
            each but npz, wav and images may be gzipped
  folders   MNIST's files; images or wav files, a sub-folder a class; translations (train.en, train.de); several files

options:
  --out FILE.png   draw some examples: images with labels, recordings with spectrograms, or rows of a table
  --n N            how many examples to draw (default 16, of recordings 8)
  --part NAME      which split or file to draw them from (default: the training part, or the first)
  --rows N         how many examples to look at where they are decoded one by one (default 10000; 0: all)
  --seed N         which examples are drawn (default 0)
  --size PIXELS    resize images to a square, needed where they differ in size

example: jaxbig data show data/mnist --out mnist.png
"""

INFO = """\
usage: jaxbig info PATH [--step N] [--leaves]

Show what PATH holds: a run's folder (--workdir), its folder of checkpoints, or one step's. Parts with their sizes, the
technique with its arguments, configuration, versions, position in the data, all complete steps with their scores; and
check every file against its checksum (exit code 1 if one is damaged).

Or a published model's folder (config.json and safetensors files): its family, architecture, layers, parameters, bytes
and dtypes, from the headers alone, and whether jaxbig.load reads it (exit code 1, and why, if not). Or a GGUF file: its
name, formats and bits a number, by its metadata alone.

options:
  --step N     which checkpoint (default: the newest complete one)
  --leaves     list every array

example: jaxbig info runs/quickstart/teacher
"""

CONVERT = """\
usage: jaxbig convert SRC DST [--dtype NAME] [--max-shard-size SIZE] [--overwrite]

Write the published model in the folder SRC (config.json and safetensors files) to the folder DST, block by block: its
weights in another dtype or in files of another size, its config and its tokenizer. The model may be of any family.
Nothing is there before all of it is.

options:
  --dtype NAME           bfloat16, float16, float32 or float64, for all floats of 16 bits or more (default: as they
                         are); a number that float16 cannot hold is an error
  --max-shard-size SIZE  several files and an index above this many bytes, such as 500MB (default 5GB)
  --overwrite            DST may be there; its weights give way, its other files stay

example: jaxbig convert models/llama models/llama-bf16 --dtype bfloat16
"""

COMPARE = """\
usage: jaxbig compare RUN RUN... [--best max:METRIC] [--out FILE.html]

Show runs side by side. RUN is a run's folder (--workdir), which holds metrics.jsonl.

options:
  --best GOAL      each run's best line by max:METRIC or min:METRIC in place of its last one
  --out FILE.html  write the table and the learning curves as one self-contained page

example: jaxbig compare runs/a runs/b --best max:val_accuracy --out compare.html
"""

PEFT = """\
usage: jaxbig peft list --model NAME [--method NAME ...] [--batch N] [--image PIXELS]

Show what each technique would cost on a model, with its defaults (adalora and trainable_tokens have none: with a small
example's): trained parameters, bytes of the adapter and of the frozen base, FLOPs of a forward pass and of a training
step. Nothing is allocated or compiled, so the model may be of any size; techniques that find nothing to do in it are
named, and why.

options:
  --model NAME     vit-ti16, vit-s16, vit-b16, vit-l16, vit-h14, resnet18, resnet34, resnet50; a published model's
                   config.json; or FILE.py:FUNCTION, a function that takes the batch size and returns a linen module
                   and a tuple of its inputs
  --method NAME    only these (default: all)
  --batch N        rows of the batch (default 1)
  --image PIXELS   height and width of images (default 224)

example: jaxbig peft list --model vit-b16 --method lora ia3 full
"""

GENERATE = """\
usage: jaxbig generate PATH PROMPT [--base PATH] [--max-tokens N] [--temperature T] [--top-k K] [--top-p P] [--min-p P]
                       [--seed N] [--repetition-penalty R] [--stop TEXT ...] [--int8]

Go on with PROMPT and print the whole text as it comes; tokens a second are told on standard error. PATH is a folder
with a decoder: as Hugging Face has it, with config.json, safetensors files and a tokenizer; or a model of llama2.c with
its tokenizer, two files *.bin. It may also be a GGUF file; or the folder of a PEFT adapter or of a run, its newest
checkpoint, over the model that was tuned. Which it is, what is inside tells, not the names. A T5 reads PROMPT and
answers: of it the answer alone is printed.

options:
  --base PATH               the model that an adapter or a run began with, where the files do not say
  --max-tokens N            at most so many tokens after the prompt (default 256; never beyond the model's positions)
  --temperature T           0: always the likeliest token; less than 1: safer, more: more surprising (default 1)
  --top-k K                 draw from the K likeliest tokens only
  --top-p P                 draw from the likeliest tokens that together have probability P
  --min-p P                 draw from tokens at least P times as likely as the likeliest
  --repetition-penalty R    make tokens less likely that the text has already (more than 1)
  --seed N                  what is drawn (default 0): the same seed gives the same text
  --stop TEXT               end before TEXT; may be given more than once
  --int8                    keep the attention's keys and values in 8 bits

example: jaxbig generate models/stories260K "Once upon a time" --max-tokens 200 --temperature 0
"""

CHAT = """\
usage: jaxbig chat PATH [--base PATH] [--system TEXT] [--max-tokens N] [--temperature T] [--top-k K] [--top-p P]
                   [--min-p P] [--seed N] [--repetition-penalty R] [--stop TEXT ...] [--int8]

Talk with a model that has a chat template: a folder as Hugging Face has it, a GGUF file, an adapter or a run over one.
Every line is something said; what is piped in is answered line by line. `/new` begins another conversation, `/quit` or
Ctrl-D ends.

options:
  --system TEXT             what the model is told before anything is said
  and all of `jaxbig generate`, where --max-tokens is of one answer

example: jaxbig chat models/SmolLM2-135M-Instruct --temperature 0.2 --top-p 0.9
"""
